"""State that learns outside the optimizer: rows and their stores, a queue, a bank, a momentum encoder."""
