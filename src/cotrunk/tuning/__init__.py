"""Find the settings that need the fewest rows at the required quality (`cotrunk tune`)."""
