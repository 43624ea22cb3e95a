import { recoveryLimits } from '../limits.ts';
import type { Workflow } from '../workflows/api.ts';
import { cleaningSteps, type CloseInput } from './cleaning.ts';
import { settleClosed, settleOpened, settleRelocated } from './settling.ts';
import type { RecoveryInput } from './plan.ts';
import { OpeningSteps } from './opening.ts';
import { step } from './opening-step.ts';
import { type RelocateInput, relocateMachine, stopRelocation } from './relocating.ts';
import type { RecoveryWorld } from './world.ts';

/**
 * Instant access, from request to clean-up, as the thirteen steps of product.md. Three workflows
 * work on one recovery: `open` is steps 1 to 11, `relocate` is step 12, `close` is step 13. Between
 * them the machine runs, for seconds or for days, and nothing here has to.
 *
 * Invariant: every external thing is named after the recovery, so each step first looks whether
 * it was done already. Undo runs in reverse and only takes back what carries that name.
 */
export function instantAccess(world: RecoveryWorld): {
  open: Workflow<RecoveryInput>;
  relocate: Workflow<RelocateInput>;
  close: Workflow<CloseInput>;
} {
  return { open: opening(world), relocate: relocating(world), close: closing(world) };
}

/** Steps 1 to 11: from the request to a machine that is available. */
function opening(world: RecoveryWorld): Workflow<RecoveryInput> {
  const on = new OpeningSteps(world);
  return {
    kind: 'recovery.open',
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
        'Configure',
        (context) => on.configure(context),
        (context) => on.unregister(context),
      ),
      step(
        10,
        'Power on',
        (context) => on.powerOn(context),
        (context) => on.powerOff(context),
      ),
      step(11, 'Available', (context) => on.available(context)),
    ],
    settled: (run, input) => settleOpened(world, run, input),
  };
}

/** Step 12: the running machine's disks move to production storage. */
function relocating(world: RecoveryWorld): Workflow<RelocateInput> {
  return {
    kind: 'recovery.relocate',
    steps: [
      {
        number: 12,
        name: 'Relocate',
        awayAttemptsMax: recoveryLimits.awayAttemptsMax,
        run: (context) => relocateMachine(world, context),
        undo: (context) => stopRelocation(world, context),
      },
    ],
    settled: (run, input) => settleRelocated(world, run, input),
  };
}

/** Step 13: clean up, in the safe order of cleaning.ts. */
function closing(world: RecoveryWorld): Workflow<CloseInput> {
  return {
    kind: 'recovery.close',
    steps: cleaningSteps(world),
    settled: (run, input) => settleClosed(world, run, input),
  };
}
