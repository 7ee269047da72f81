"""Train, evaluate and report a neural network on a table, on one process or many."""
