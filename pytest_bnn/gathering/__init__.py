"""What happens in a test session: recorded around each test, sent to the controller, put together there."""
