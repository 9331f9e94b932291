"""Search for the settings that cost the fewest rows at the quality asked for (`cotrunk tune`)."""
