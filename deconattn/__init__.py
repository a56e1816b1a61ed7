"""DeconAttn: the wind tunnel for attention."""
