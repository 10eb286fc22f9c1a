"""Values whose batch axis does not come first in the file."""
