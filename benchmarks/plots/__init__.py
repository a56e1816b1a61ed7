"""Pictures of the results, and the page that shows them."""
