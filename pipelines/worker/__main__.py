"""Entry of the worker process: `python -P -m quire.pipelines.worker`, started by the supervisor."""

from quire.pipelines.worker.process import main

if __name__ == "__main__":
    main()
