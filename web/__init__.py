"""What people and their clients see over HTTP: the JSON interface, and later the pages of the console."""
