"""An example application: reminders and a daily digest."""
