"""Evaluate a GAN: python eval_gan.py --model_path CHECKPOINT. The task is in extras/gan/eval_gan.py."""

from options import answer_early

if __name__ == "__main__":
    answer_early(__file__)  # --help and a wrong option, before torch is imported

from extras.gan.eval_gan import EvaluatorGAN

if __name__ == "__main__":
    EvaluatorGAN.main()
