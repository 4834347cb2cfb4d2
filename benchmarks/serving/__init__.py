"""What exports need and how other runtimes read them."""
