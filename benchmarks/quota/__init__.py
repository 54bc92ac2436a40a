"""The known-quota row: cells, the client of one cell, its judge, and running many side by side."""
