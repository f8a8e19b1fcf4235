"""What is run: conditions, the runs themselves, one executor and one store for all of them."""
