"""What walks the guides: reads their blocks, and runs or checks them."""
