"""The folder that holds the server's packages (services, gateway, deploy) in an installation from wheels.

Only the command `triptych` puts it on the import path, so programs with modules of these names keep their own.
"""
