"""Every memory mechanism on one pretrained model, side by side: `python -m bench.memory [--book PATH] [--quick]`."""
