import type { Terminal } from '../lib/terminal.ts';
import { fitText, formatBytes, formatDuration, padText, printable } from '../lib/text.ts';
import { textWidth, wrapText } from '../lib/text.ts';
import { formatRelative, formatTime } from '../lib/times.ts';
import type { Recovery, RecoveryStep } from './schema.ts';

/** A recovery as lines of text: its thirteen steps, its state, what can be done next. */
const marks = {
  waiting: ['·', 'dim'],
  running: ['▸', 'cyan'],
  done: ['✔', 'green'],
  failed: ['✖', 'red'],
  undone: ['↶', 'yellow'],
  skipped: ['–', 'dim'],
} as const;

type StepPart = RecoveryStep['subSteps'][number];

/**
 * One line per step, and one per sub-step of a running or failed one. `isWhole`: what does not fit
 * goes on below instead of being cut.
 */
export function stepLines(
  recovery: Recovery,
  terminal: Terminal,
  nowMs: number,
  isWhole = false,
): string[] {
  const linesOf = (step: StepPart, number: string) => [
    stepLine(step, terminal, nowMs, number),
    ...(isWhole ? restOf(step, terminal) : []),
  ];
  return recovery.steps.flatMap((step) => {
    const open = step.state === 'running' || step.state === 'failed';
    const inner = open ? step.subSteps : [];
    return [
      ...linesOf(step, String(step.number).padStart(2)),
      ...inner.flatMap((part) => linesOf(part, '    ')),
    ];
  });
}

/** A detail that its line has cut, whole, below it. */
function restOf({ detail }: StepPart, terminal: Terminal): string[] {
  const room = terminal.width - 1 - wordsAt;
  const text = printable(detail ?? '');
  if (textWidth(text) <= room) return [];
  return wrapText(text, terminal.width - 7).map((line) => `     ${line}`);
}

/** Where what a step says begins in its line. */
const wordsAt = 34;

export function stepLine(
  step: StepPart,
  terminal: Terminal,
  nowMs: number,
  number: string,
): string {
  const [mark, style] = marks[step.state];
  const { startedMs } = step;
  const endMs = step.endedMs ?? (step.state === 'running' ? nowMs : null);
  // A clock that differs a little from the server's must not show a negative time.
  const took =
    startedMs === null || endMs === null ? '' : formatDuration(Math.max(0, endMs - startedMs));
  const head = `${number} ${mark} ${padText(fitText(step.name, 18), 18)} ${padText(took, 9, 'right')}  `;
  const room = terminal.width - 1 - wordsAt;
  const words = [progressText(step), step.detail ?? ''].filter((text) => text !== '').join('  ');
  const line = (head + fitText(printable(words), room)).trimEnd();
  return step.state === 'done'
    ? line.replace(mark, terminal.paint(style, mark))
    : terminal.paint(style, line);
}

function progressText(step: StepPart): string {
  const { progress } = step;
  if (progress === null || step.state !== 'running' || progress.total <= 0) return '';
  const percent = Math.min(100, Math.floor((100 * progress.done) / progress.total));
  const amount =
    progress.unit === 'bytes'
      ? `${formatBytes(progress.done)} of ${formatBytes(progress.total)}`
      : `${progress.done} of ${progress.total}`;
  return `${percent}%, ${amount}`;
}

export function titleLine(recovery: Recovery, terminal: Terminal): string {
  const taken = formatTime(recovery.saveset.takenAtMs);
  const from = `${printable(recovery.machine.name)} of ${taken}`;
  const text = `${printable(recovery.name)}: ${from}, ${recovery.mode}, recovery ${recovery.id}`;
  return terminal.paint('bold', fitText(text, terminal.width - 1));
}

/** What has become of it, in a sentence or two, and what to do next. */
export function outcomeLines(recovery: Recovery, terminal: Terminal, nowMs: number): string[] {
  const name = printable(recovery.name);
  const where = [recovery.host, recovery.hypervisor].filter((part) => part !== null);
  const on = where.length === 0 ? '' : ` on ${where.map(printable).join(' of ')}`;
  const lines: string[] = [];
  switch (recovery.state) {
    case 'available': {
      const ms = recovery.timeToAvailableMs;
      const after = ms === null ? '' : ` after ${formatDuration(ms)}`;
      lines.push(terminal.paint('green', `${name} is available${on}${after}.`));
      break;
    }
    case 'starting':
      lines.push(`${name} is starting${on}.`);
      break;
    case 'relocating':
      lines.push(`${name} runs${on} and moves to ${recovery.relocation?.target ?? 'production'}.`);
      break;
    case 'cleaning':
      lines.push(`${name} is being cleaned up.`);
      break;
    case 'parked':
      lines.push(`${name} is parked: it is ${offOrGone(recovery)}, and what was written is kept.`);
      break;
    case 'done':
      lines.push(terminal.paint('green', `${name} is done; nothing of it is left to clean up.`));
      break;
    case 'cancelled':
      lines.push(`${name} is cancelled, and nothing of it is left.`);
      break;
    case 'failed':
      lines.push(
        terminal.paint('red', `${name} failed: ${recovery.error?.message ?? 'no reason'}`),
      );
      break;
  }
  for (const warning of [...recovery.warnings, ...notMoved(recovery)]) {
    const told = wrapText(`! ${warning}`, terminal.width - 1);
    lines.push(...told.map((line) => terminal.paint('yellow', line)));
  }
  if (recovery.state === 'available')
    lines.push(...exportLines(recovery), ...attachedLines(recovery, terminal));
  const holds = ['available', 'relocating', 'parked'].includes(recovery.state);
  if (recovery.leaseEndsMs !== null && holds) {
    const end = formatTime(recovery.leaseEndsMs);
    const what = recovery.state === 'parked' ? 'What it wrote is kept until' : 'Its lease ends';
    lines.push(`${what} ${end} (${formatRelative(recovery.leaseEndsMs, nowMs)}).`);
  }
  return [...lines, ...nextLines(recovery)];
}

/** Its last relocation, when that has failed. */
function notMoved({ state, relocation }: Recovery): string[] {
  const error = relocation?.error ?? null;
  if (state !== 'available' || error === null) return [];
  return [`It was not moved to ${relocation?.target}: ${error.message}. ${error.advice}`];
}

function offOrGone({ mode }: Recovery): string {
  if (mode === 'flr') return 'detached';
  return mode === 'publish' ? 'not in use' : 'off';
}

function exportLines(recovery: Recovery): string[] {
  const { mode, export: exported } = recovery;
  if (mode !== 'publish' || exported === null) return [];
  const { address, path, nfsPort, mountPort } = exported;
  const host = address.includes(':') ? `[${address}]` : address;
  const options = `vers=3,nolock,tcp,port=${nfsPort},mountport=${mountPort}`;
  return [
    `Mount it:  mount -t nfs -o ${options} ${host}:${path} /mnt`,
    ...recovery.disks.map(
      (disk) => `Disk:      ${printable(disk.path)}, ${formatBytes(disk.sizeBytes)}`,
    ),
  ];
}

/** Where each disk appeared, and what to mind before it is mounted there. */
function attachedLines(recovery: Recovery, terminal: Terminal): string[] {
  const { mode, target, attached, machine } = recovery;
  if (mode !== 'flr' || target === null) return [];
  const name = printable(target.name);
  const lines = attached.map(({ disk, device, serial, seenAs }) => {
    const found = serial === null ? '' : `, serial ${printable(serial)}`;
    const seen = seenAs === null ? 'not confirmed by its guest' : `seen as ${printable(seenAs)}`;
    return `Disk:      ${printable(disk)} is ${printable(device)} of ${name}${found}; ${seen}`;
  });
  const twins =
    target.id === machine.id
      ? `${name} is the machine of the backup: its file systems have the same UUIDs.`
      : `If ${name} was cloned from ${printable(machine.name)}, UUIDs and LVM names are the same.`;
  return [
    ...lines,
    ...(attached.some(({ serial }) => serial?.startsWith('rouse-') === true)
      ? [`Find it:   ls -l /dev/disk/by-id/ | grep rouse-${recovery.id}`]
      : []),
    ...wrapText(
      `! ${twins} Mount by device: -o ro, XFS: -o ro,nouuid; LVM: vgimportclone.`,
      terminal.width - 1,
    ),
  ];
}

/** What people do next, as commands to copy. */
function nextLines(recovery: Recovery): string[] {
  const { id, mode, state } = recovery;
  if (state === 'available' && mode === 'instant') {
    return [
      `→ rouse relocate ${id} --to DATASTORE   moves it to production storage`,
      `→ rouse cancel ${id}                    ends it and cleans up`,
    ];
  }
  if (state === 'available') return [`→ rouse cancel ${id}   ends it and cleans up`];
  if (state === 'parked') {
    return [
      `→ rouse resume ${id}   runs it again with all that it wrote`,
      `→ rouse seal ${id}     makes a saveset of it`,
      `→ rouse renew ${id} --lease 30d   keeps it longer`,
      `→ rouse cancel ${id}   discards it`,
    ];
  }
  return [];
}
