"""A script that knows Accelerate and nothing of this project, but for the lines marked as the contract."""

import os
import sys
import time
from pathlib import Path

from accelerate import Accelerator

STEPS = 200
accelerator = Accelerator(cpu=True)
saved = Path(os.environ["LAUNCH_RUN_DIR"], "mine.txt")
step = int(saved.read_text()) if saved.exists() else 0
while step < STEPS:
    step += 1
    time.sleep(0.05)
    if os.path.exists(os.environ["LAUNCH_STOP_FILE"]):  # the contract: look,
        accelerator.set_trigger()
    if accelerator.check_trigger():  # agree, save,
        if accelerator.is_main_process:
            saved.write_text(str(step))
        accelerator.wait_for_everyone()
        os._exit(75)  # and ask to be started again
rank, world = accelerator.process_index, accelerator.num_processes
print(f"rank {rank} of {world} ends at step {step}, words {sys.argv[1:]}", flush=True)
accelerator.end_training()
