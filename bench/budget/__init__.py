"""What a cache's budget costs in memory."""
