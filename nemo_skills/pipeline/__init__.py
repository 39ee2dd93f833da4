"""Launch side: wrappers that plan, render and submit jobs from the user's workstation."""
