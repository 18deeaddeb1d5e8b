"""One resource a file: validate, call one service method, map errors."""
