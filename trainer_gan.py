"""Train a GAN on FashionMNIST: python trainer_gan.py. The task is in extras/gan/trainer_gan.py."""

from options import answer_early

if __name__ == "__main__":
    answer_early(__file__)  # --help and a wrong option, before torch is imported

from extras.gan.trainer_gan import TrainerGAN

if __name__ == "__main__":
    TrainerGAN.main()
