import type { Terminal } from '../lib/terminal.ts';
import { printable } from '../lib/text.ts';
import { formatTime } from '../lib/times.ts';
import type { RecoveryPlan } from './schema.ts';

/** The answer to a dry run: choices with their reasons, steps, and every change. */
export function showPlan(answer: unknown, terminal: Terminal): void {
  // The server answered a request with dryRun: this is its plan.
  const plan = answer as RecoveryPlan;
  terminal.answer(plan, () => {
    const fact = (name: string, value: string | null) => {
      if (value !== null) terminal.print(`${name.padEnd(12)}${printable(value)}`);
    };
    terminal.print('A dry run: nothing was changed.');
    fact('Machine', plan.machine.name);
    fact('Saveset', `${plan.saveset.id}, taken ${formatTime(plan.saveset.takenAtMs)}`);
    fact('Mode', plan.mode);
    fact('Name', plan.name);
    fact('Hypervisor', plan.hypervisor);
    fact('Host', plan.host);
    fact('Proxy', plan.proxy);
    fact('Datastore', plan.datastore);
    if (plan.clients.length > 0) fact('Clients', plan.clients.join(', '));
    fact('Lease ends', formatTime(plan.leaseEndsMs));
    for (const warning of plan.warnings) {
      terminal.print(terminal.paint('yellow', `! ${printable(warning)}`));
    }
    if (plan.candidates.length > 0) {
      terminal.print('');
      terminal.table(
        [
          { title: 'host' },
          { title: 'proxy' },
          { title: 'score', align: 'right' },
          { title: '', minWidth: 6 },
          { title: 'reasons', flexible: true },
        ],
        plan.candidates.map((candidate) => [
          candidate.host,
          candidate.proxy,
          String(candidate.score),
          candidate.chosen ? 'chosen' : '',
          candidate.reasons.join('; '),
        ]),
        '',
      );
    }
    terminal.print('');
    terminal.table(
      [{ title: 'step', align: 'right' }, { title: 'name' }, { title: 'what', flexible: true }],
      plan.steps.map((step) => [String(step.number), step.name, step.detail]),
      'No step would be made.',
    );
    if (plan.changes.length > 0) terminal.print('');
    for (const change of plan.changes) terminal.print(`* ${printable(change)}`);
  });
}
