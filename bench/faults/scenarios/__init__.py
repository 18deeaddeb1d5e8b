"""One kind of fault a file. Each plays on a stage and enters what came of it into an account."""
