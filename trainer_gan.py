"""Train a GAN on FashionMNIST: python trainer_gan.py. The task is in extras/gan/trainer_gan.py."""

from extras.gan.trainer_gan import TrainerGAN

if __name__ == "__main__":
    TrainerGAN.main()
