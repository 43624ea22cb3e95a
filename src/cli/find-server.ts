import { readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { systemErrorCode, toRouseError } from '../errors.ts';
import { shellWord } from '../lib/text.ts';

/**
 * Where everything lives, and which server is meant. `--data DIR` or ROUSE_DATA name the
 * directory; a running server leaves its address in `DIR/run/server.json`.
 */
export function dataDirectory(
  option: string | undefined,
  environment: NodeJS.ProcessEnv,
  isRoot: boolean,
): string {
  const named = option ?? environment['ROUSE_DATA'];
  if (named !== undefined && named !== '') return resolve(named);
  return isRoot ? '/var/lib/rouse' : join(homedir(), '.local', 'share', 'rouse');
}

export interface FoundServer {
  readonly url: string;
  readonly unreachable: { readonly message: string; readonly advice: string };
}

/** `url`: `--server` or ROUSE_SERVER; otherwise the server that runs on `directory`. */
export async function findServer(url: string | undefined, directory: string): Promise<FoundServer> {
  if (url !== undefined && url !== '') {
    const message = `no server answers at ${url}`;
    return { url, unreachable: { message, advice: 'Check --server, or start it: rouse up' } };
  }
  const unreachable = {
    message: `no server runs on ${directory}`,
    advice: `Start it: rouse up --data ${shellWord(directory)}`,
  };
  const socket = socketIn(join(directory, 'run', 'server.json'));
  if (socket !== undefined) return { url: `unix:${socket}`, unreachable };
  const { configOf } = await import('../config.ts');
  return { url: `unix:${configOf({ data: directory }).serverSocket}`, unreachable };
}

function socketIn(file: string): string | undefined {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes(systemErrorCode(error) ?? '')) return undefined;
    throw toRouseError(error, file);
  }
  try {
    const { socket } = JSON.parse(text) as { readonly socket?: unknown };
    return typeof socket === 'string' ? socket : undefined;
  } catch {
    // Half written while a server starts: its usual place is tried.
    return undefined;
  }
}
