"""Which experiments are there?"""

from experiments import COMMANDS

for name, question in COMMANDS.items():
    print(f"python -m experiments.{name:<16} {question}")
print("\nEach takes --help, and --fast for a small run. experiments/README.md says what they take.")
