import type { Command } from 'commander';
import { examples, type Terminal } from '../lib/terminal.ts';

/** `rouse completion SHELL`: a script made from the very commands and options that there are. */
export function completionCommand(program: Command, terminal: Terminal): void {
  const shell = program
    .createArgument('<shell>', 'which shell the script is for')
    .choices(['bash', 'zsh', 'fish']);
  const command = program
    .command('completion')
    .description('print a script that completes commands and options in a shell')
    .addArgument(shell)
    .action((name: 'bash' | 'zsh' | 'fish') => {
      const words = wordsOf(program);
      const script = { bash, zsh, fish }[name](words);
      terminal.answer({ shell: name, script }, () => terminal.print(script));
    });
  examples(command, [
    'source <(rouse completion bash)',
    'source <(rouse completion zsh)',
    'rouse completion fish > ~/.config/fish/completions/rouse.fish',
  ]);
}

interface Word {
  readonly text: string;
  readonly description: string;
}

/** What may come after each beginning: `''`, `vault`, `vault verify`. */
type Words = ReadonlyMap<string, readonly Word[]>;

function wordsOf(program: Command): Words {
  const words = new Map<string, readonly Word[]>();
  const globals = optionsOf(program);
  const visit = (command: Command, path: string) => {
    const commands = command.createHelp().visibleCommands(command);
    words.set(path, [
      ...commands.map((entry) => ({ text: entry.name(), description: entry.description() })),
      ...(command === program ? globals : [...optionsOf(command), ...globals]),
    ]);
    for (const entry of commands) {
      if (entry.name() !== 'help')
        visit(entry, path === '' ? entry.name() : `${path} ${entry.name()}`);
    }
  };
  visit(program, '');
  return words;
}

function optionsOf(command: Command): readonly Word[] {
  return command
    .createHelp()
    .visibleOptions(command)
    .filter((option) => option.long !== undefined && option.long !== '--version')
    .map((option) => ({ text: option.long ?? '', description: option.description }));
}

function bash(words: Words): string {
  const cases = [...words].map(
    ([path, list]) => `    '${path}') words='${list.map((word) => word.text).join(' ')}' ;;`,
  );
  return `_rouse() {
  local current=\${COMP_WORDS[COMP_CWORD]} path='' word words=''
  for word in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case $word in -*) continue ;; esac
    case "$path $word" in
${[...words.keys()]
  .filter((path) => path !== '')
  .map((path) => `      '${path.includes(' ') ? path : ` ${path}`}') path='${path}' ;;`)
  .join('\n')}
    esac
  done
  case $path in
${cases.join('\n')}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  [ \${#COMPREPLY[@]} -gt 0 ] || COMPREPLY=($(compgen -f -- "$current"))
}
complete -o filenames -F _rouse rouse`;
}

function zsh(words: Words): string {
  return `autoload -U +X bashcompinit && bashcompinit
${bash(words)}`;
}

function fish(words: Words): string {
  const lines = ['complete -c rouse -f'];
  const tops = (words.get('') ?? []).filter((word) => !word.text.startsWith('-'));
  const top = tops.map((word) => word.text).join(' ');
  for (const [path, list] of words) {
    const [first, second] = path.split(' ');
    const condition =
      first === ''
        ? `not __fish_seen_subcommand_from ${top}`
        : `__fish_seen_subcommand_from ${first}${second === undefined ? '' : `; and __fish_seen_subcommand_from ${second}`}`;
    for (const { text, description } of list) {
      const what = text.startsWith('--') ? `-l ${text.slice(2)}` : `-a ${text}`;
      lines.push(
        `complete -c rouse -n '${condition}' ${what} -d '${description.replaceAll("'", '’')}'`,
      );
    }
  }
  return lines.join('\n');
}
