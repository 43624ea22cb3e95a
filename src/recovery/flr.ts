import type { Workflow } from '../workflows/api.ts';
import { AttachingSteps } from './attaching.ts';
import { OpeningSteps } from './opening.ts';
import { step } from './opening-step.ts';
import type { RecoveryInput } from './plan.ts';
import { settleOpened } from './settling.ts';
import type { RecoveryWorld } from './world.ts';

/**
 * File-level recovery by attaching: the thirteen steps of product.md, for a machine that runs
 * already. The clone is exported to the host of that machine, its disks appear in the guest, and
 * people copy what they need. Ending it is step 13 of instant access (cleaning.ts): disks are
 * detached first.
 *
 * Invariants: what the guest writes lands in the clone, never in the backup. The target machine is
 * somebody's production: nothing of it is changed but disks that lie on our own export, it is never
 * powered off, and a disk that its guest has mounted, as far as its agent tells, is not taken away.
 */
export function fileLevelRecovery(world: RecoveryWorld): Workflow<RecoveryInput> {
  const on = new OpeningSteps(world);
  const into = new AttachingSteps(world);
  return {
    kind: 'recovery.flr',
    steps: [
      step(1, 'Device', (context) => on.findDevice(context)),
      step(2, 'Proxy', (context) => on.chooseProxy(context)),
      step(3, 'Host', (context) => on.chooseHost(context)),
      step(4, 'Hand over', (context) => on.handOver(context)),
      step(5, 'Ask for the copy', (context) => on.askForCopy(context)),
      step(
        6,
        'Clone',
        (context) => on.clone(context),
        (context) => on.dropClone(context),
      ),
      step(
        7,
        'Export',
        (context) => on.share(context),
        (context) => on.dropShare(context),
      ),
      step(
        8,
        'Datastore',
        (context) => on.mount(context),
        (context) => on.unmount(context),
      ),
      step(
        9,
        'Attach',
        (context) => into.attach(context),
        (context) => into.detach(context),
      ),
      step(10, 'Power on', () => into.runsAlready()),
      step(11, 'Available', (context) => on.available(context)),
    ],
    settled: (run, input) => settleOpened(world, run, input),
  };
}
