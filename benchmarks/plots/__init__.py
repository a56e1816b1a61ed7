"""Pictures of the results, and the README's section of them."""
