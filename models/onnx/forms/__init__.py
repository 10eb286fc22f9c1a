"""The forms that files of classifiers come in, brought to one: one input, logits at the end."""
