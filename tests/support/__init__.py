"""What the tests of several adapters share. What one adapter's tests share is in a module beside them."""
