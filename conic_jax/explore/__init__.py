"""A page to look at all images by what an encoder thinks of them."""
