"""Training, data and evaluation for language-model experiments: a standalone Trainer and BABILong."""
