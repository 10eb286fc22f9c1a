"""How far the deployed float32 network may be from the real one, carried backward."""
