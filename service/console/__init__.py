"""What people look at in a browser: pages made on the server, on top of the API."""
