"""A web page with the runs of a journal, for this machine.

`guard` decides who is answered, `site` what, `pages` how it looks; `work` starts processes, and `server` is the only module
that knows Starlette and uvicorn. Workflows are never imported here: answers are converted, and runs resumed, in processes
of their own.
"""
