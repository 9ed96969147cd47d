"""An async client for Kimi that never exceeds the limits of the account."""
