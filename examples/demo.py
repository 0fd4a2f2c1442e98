"""Train on the bundled sample, evaluate the best checkpoint, and list the results: python -m examples.demo"""

from engine.options.parser import run_main
from eval_vanilla import EvaluatorVanilla
from trainer_vanilla import TrainerVanilla


def main() -> None:
    trainer = TrainerVanilla(TrainerVanilla.parse_options())
    trainer.train()
    run_dir = trainer.run_dir.path
    best = trainer.checkpointer.path("best")
    options = EvaluatorVanilla.parse_options(["--model_path", str(best), "--save_path", str(run_dir / "test")])
    evaluator = EvaluatorVanilla.run_test(options)
    accuracy, (low, high) = evaluator.results()["accuracy"], evaluator.intervals()["accuracy"]
    print(f"""
Test accuracy: {accuracy:.1%} (95 % interval {low:.1%} to {high:.1%}, n = {evaluator.num_samples:,})

Look at:
  {evaluator.output_dir / "mistakes.png"}    images that it misclassified
  {evaluator.output_dir / "confusion_matrix.png"}    which classes it confuses
  {run_dir / "metrics.csv"}    one row per epoch
  tensorboard --logdir {run_dir}    curves and predictions in a browser""")


if __name__ == "__main__":
    run_main(main)
