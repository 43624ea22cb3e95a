import { type ErrorCode, RouseError } from '../errors.ts';
import type { Terminal } from '../lib/terminal.ts';
import { printable, wrapText } from '../lib/text.ts';
import { formatTime } from '../lib/times.ts';
import type { RecoveryPlan } from './schema.ts';

/**
 * The answer to a dry run: choices with their reasons, steps, and every change. Throws the refusal
 * when no candidate will do, so that a script sees it by the exit code.
 */
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
    const at = plan.proxyAddress === null ? '' : ` at ${plan.proxyAddress}`;
    fact('Proxy', plan.proxy === null ? null : `${plan.proxy}${at}`);
    fact('Datastore', plan.datastore);
    if (plan.clients.length > 0) fact('Clients', plan.clients.join(', '));
    fact('Lease ends', formatTime(plan.leaseEndsMs));
    for (const warning of plan.warnings) {
      for (const line of wrapText(`! ${warning}`, terminal.width - 1))
        terminal.print(terminal.paint('yellow', line));
    }
    if (plan.candidates.length > 0) showCandidates(plan.candidates, terminal);
    terminal.print('');
    terminal.table(
      [{ title: 'step', align: 'right' }, { title: 'name' }, { title: 'what', flexible: true }],
      plan.steps.map((step) => [String(step.number), step.name, step.detail]),
      'No step would be made.',
    );
    if (plan.changes.length > 0) terminal.print('');
    for (const change of plan.changes)
      for (const line of wrapText(`* ${change}`, terminal.width - 1)) terminal.print(line);
  });
  const { refusal } = plan;
  if (refusal === null) return;
  // The code is one of the table's: the server wrote it.
  const code = refusal.code as ErrorCode;
  throw new RouseError(code, refusal.message, { advice: refusal.advice });
}

/** The ranking, and below it why: a table of 80 columns has no room for reasons. */
function showCandidates(candidates: RecoveryPlan['candidates'], terminal: Terminal): void {
  terminal.print('');
  terminal.table(
    [
      { title: '#', align: 'right' },
      { title: 'proxy', flexible: true, minWidth: 6 },
      { title: 'address', flexible: true, minWidth: 8 },
      { title: 'host', flexible: true, minWidth: 6 },
      { title: 'cluster', flexible: true, minWidth: 6 },
      { title: 'score', align: 'right' },
      { title: '', minWidth: 7 },
    ],
    candidates.map((candidate, index) => [
      String(index + 1),
      candidate.proxy,
      candidate.address,
      candidate.host,
      candidate.cluster ?? '',
      String(candidate.score),
      candidate.chosen ? 'chosen' : candidate.refusals.length > 0 ? 'refused' : '',
    ]),
    '',
  );
  terminal.print('');
  for (const [index, { refusals, reasons }] of candidates.entries()) {
    const refused = refusals.flatMap((text) => wrapText(`refused: ${text}`, terminal.width - 5));
    const lines = [
      ...refused.map((line) => terminal.paint('yellow', line)),
      ...reasons.flatMap((text) => wrapText(text, terminal.width - 5)),
    ];
    for (const [at, line] of lines.entries()) {
      const number = at === 0 ? String(index + 1) : '';
      terminal.print(`${number.padStart(3)}  ${line}`);
    }
  }
}
