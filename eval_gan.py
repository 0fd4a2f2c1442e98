"""Evaluate a GAN: python eval_gan.py --model_path CHECKPOINT. The task is in extras/gan/eval_gan.py."""

from extras.gan.eval_gan import EvaluatorGAN

if __name__ == "__main__":
    EvaluatorGAN.main()
