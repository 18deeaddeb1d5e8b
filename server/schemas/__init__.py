"""Bodies of requests and of answers, as the HTTP interface has them."""
