/** What `npm run demo -- --report FILE` writes, and what it prints at its end. */
export interface Report {
  readonly ok: boolean;
  readonly steps: readonly StepTime[];
  readonly timeToPowerOnMilliseconds: number;
  readonly timeToHeartbeatMilliseconds: number;
  readonly heartbeats: {
    readonly beforeRelocation: number;
    readonly afterRelocation: number;
    readonly missed: number;
  };
  readonly fileHashOk: boolean;
  readonly filesystemCheckOk: boolean;
  readonly vault: { readonly logicalBytes: number; readonly storedBytes: number };
  readonly leftovers: {
    readonly exports: number;
    readonly clones: number;
    readonly registrations: number;
    readonly processes: number;
  };
}

export interface StepTime {
  readonly number: number;
  readonly name: string;
  readonly milliseconds: number;
}

/** Says what happens while it happens, and how long it took. */
export async function tell<T>(what: string, work: () => Promise<T>): Promise<T> {
  const startedMs = performance.now();
  process.stdout.write(`  ${what.padEnd(44, ' ')} `);
  try {
    const value = await work();
    process.stdout.write(`${seconds(performance.now() - startedMs).padStart(9)}\n`);
    return value;
  } catch (error) {
    process.stdout.write('   failed\n');
    throw error;
  }
}

export function printSummary(report: Report, picture: string): void {
  const { vault, heartbeats, leftovers } = report;
  const mebibytes = (bytes: number) => `${(bytes / 1024 ** 2).toFixed(1)} MiB`;
  const left = Object.entries(leftovers).filter(([, count]) => count > 0);
  const lines = [
    '',
    'The thirteen steps of its recovery',
    ...report.steps.map(
      ({ number, name, milliseconds }) =>
        `  ${String(number).padStart(2)}  ${name.padEnd(40)} ${seconds(milliseconds).padStart(9)}`,
    ),
    '',
    `  Powered on after       ${seconds(report.timeToPowerOnMilliseconds)}`,
    `  First heartbeat after  ${seconds(report.timeToHeartbeatMilliseconds)}`,
    `  Heartbeats             ${heartbeats.beforeRelocation} before, ${heartbeats.afterRelocation} after relocation, ${heartbeats.missed} missed`,
    `  Known file             ${report.fileHashOk ? 'the same' : 'DIFFERENT'}`,
    `  File system            ${report.filesystemCheckOk ? 'clean' : 'DAMAGED'}`,
    `  Vault                  ${mebibytes(vault.logicalBytes)} of savesets in ${mebibytes(vault.storedBytes)}`,
    `  Left over              ${left.map(([what, count]) => `${count} ${what}`).join(', ') || 'nothing'}`,
    `  Its screen             ${picture}`,
    '',
    report.ok ? 'All is well.' : 'Something is wrong: see above.',
    '',
  ];
  process.stdout.write(lines.join('\n'));
}

function seconds(milliseconds: number): string {
  return milliseconds < 1000
    ? `${Math.round(milliseconds)} ms`
    : `${(milliseconds / 1000).toFixed(2)} s`;
}
