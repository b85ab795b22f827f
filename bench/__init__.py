"""The benchmark: compares this server with others in one run on one machine.  It is not installed with the package.

`python -m bench --help` says how to run it.  From top to bottom: `__main__` runs the sections (`probes`, `latency`,
`hosting`, `parsing`, `memory`, `startup`, `restarts`, `asgi`, `orm`, `workers`, `steady`); they start servers
(`servers`) as `peers` describes them, in the environment which `environment` makes, serving `applications`, under the
clients of `load` and `openloop`; `report` and `plots` turn results.json into a table and pictures.
"""
