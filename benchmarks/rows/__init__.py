"""One module a row, each with `measure(options)`, which returns the row's results."""
