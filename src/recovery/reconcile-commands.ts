import { RouseError } from '../errors.ts';
import { type Commands, examples, type Terminal } from '../lib/terminal.ts';
import { plural, printable, wrapText } from '../lib/text.ts';
import type { ReconcileFinding, ReconcileReport } from './reconcile-schema.ts';

/** `rouse reconcile`: what is not as it should be, and mending it. */
export const reconcileCommands: Commands = (program, terminal) => {
  const command = program
    .command('reconcile')
    .description('find what recoveries and backups left behind or lost, and mend it')
    .option('--dry-run', 'show what would be done and change nothing')
    .option('--force', 'also what cannot be known to be unused; stops no machine even so')
    .action(async (options: { readonly dryRun?: true; readonly force?: true }) => {
      const client = await terminal.client();
      const request = { dryRun: options.dryRun ?? false, force: options.force ?? false };
      // Hosts are waited for until they are silent: no time-out.
      const answer = await client.post('/v1/reconcile', request, { timeoutMs: 0 });
      const report = answer as ReconcileReport;
      terminal.answer(report, () => print(report, terminal));
      refuseUnfinished(report);
    });
  examples(command, ['rouse reconcile --dry-run', 'rouse reconcile']);
};

const styles = { mended: 'green', 'would mend': 'cyan', left: 'yellow', failed: 'red' } as const;

function print(report: ReconcileReport, terminal: Terminal): void {
  const { findings, unreachable } = report;
  for (const { kind, name, why } of unreachable) {
    for (const line of wrapText(`! ${kind} ${name}: ${why}`, terminal.width - 2))
      terminal.print(terminal.paint('red', line));
  }
  for (const finding of findings) for (const line of lines(finding, terminal)) terminal.print(line);
  if (findings.length === 0) {
    const where = unreachable.length === 0 ? '' : ' where it could be looked';
    terminal.print(`Everything is as it should be${where}.`);
    return;
  }
  const count = (outcome: ReconcileFinding['outcome']) =>
    findings.filter((finding) => finding.outcome === outcome).length;
  const parts = (['mended', 'would mend', 'left', 'failed'] as const)
    .filter((outcome) => count(outcome) > 0)
    .map((outcome) => `${count(outcome)} ${outcome}`);
  terminal.print(`${plural(findings.length, 'thing')}: ${parts.join(', ')}.`);
  if (report.dryRun) terminal.print('A dry run: nothing was changed.');
}

function lines(finding: ReconcileFinding, terminal: Terminal): string[] {
  const { kind, name, where, problem, outcome, note } = finding;
  const at = where === '' ? '' : ` at ${printable(where)}`;
  return [
    `${terminal.paint(styles[outcome], outcome)}: ${kind} ${printable(name)}${at}`,
    ...wrapText(`${problem}: ${note}`, terminal.width - 4).map((line) => `  ${line}`),
  ];
}

/** For scripts: what could not be looked at or mended is no success. */
function refuseUnfinished({ findings, unreachable }: ReconcileReport): void {
  const [away] = unreachable;
  if (away !== undefined) {
    const code = away.kind === 'proxy' ? 'proxy-unreachable' : 'hypervisor-unreachable';
    const names = unreachable.map(({ name }) => name).join(', ');
    throw new RouseError(code, `${names} could not be looked at`, {
      advice: 'Bring it back, then: rouse reconcile',
    });
  }
  const failed = findings.filter(({ outcome }) => outcome === 'failed').length;
  if (failed === 0) return;
  throw new RouseError('hypervisor-error', `${plural(failed, 'thing')} could not be mended`, {
    advice: 'Read above what was said, then: rouse reconcile',
  });
}
