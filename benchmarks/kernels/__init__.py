"""Every mixing operation and the cross-entropy: errors and times beside their peers'."""
