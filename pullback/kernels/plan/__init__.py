"""What a kernel will cost, and in which form, batches and pieces it is made."""
