import { recoveryLimits } from '../limits.ts';
import type { Step, StepContext } from '../workflows/api.ts';
import type { RecoveryInput } from './plan.ts';

/** A step of a recovery that opens: how often it is tried, and how long somebody is waited for. */
export function step(
  number: number,
  name: string,
  run: Step<RecoveryInput>['run'],
  undo?: (context: StepContext<RecoveryInput>) => Promise<void>,
): Step<RecoveryInput> {
  const { awayAttemptsMax } = recoveryLimits;
  const attempts = { attemptsMax: 3, awayAttemptsMax };
  return { number, name, run, ...attempts, ...(undo === undefined ? {} : { undo }) };
}
