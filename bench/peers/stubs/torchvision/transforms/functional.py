"""Empty: only CAREamics' LVAE models, which this benchmark does not run, call functions of this module."""
