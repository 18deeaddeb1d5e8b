"""What a memory on a pretrained model still knows, beside its controls: trials, readers, figures."""
