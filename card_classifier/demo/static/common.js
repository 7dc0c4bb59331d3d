// What all parts of the page need: its texts, the limits of the service, and a few ways to say something.
window.cardDemo = (() => {
  const {limits, texts} = JSON.parse(document.getElementById('card-demo').textContent);

  // A text with its braces filled in.
  const fill = (text, values) => text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);

  const megabytes = bytes => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

  // The line in a part of the page that says what went wrong there; an empty text hides it.
  const say = (part, text) => {
    const notice = part.querySelector('.notice');
    notice.textContent = text;
    notice.hidden = !text;
    if (text) notice.scrollIntoView({block: 'nearest'});
  };

  const escaped = text => {
    const element = document.createElement('span');
    element.textContent = text;
    return element.innerHTML;
  };

  // Brings an element into view if too little of it is seen.
  const reveal = element => {
    const place = element.getBoundingClientRect();
    if (place.top >= 0 && place.top + Math.min(place.height, 300) <= innerHeight) return;
    const isCalm = matchMedia('(prefers-reduced-motion: reduce)').matches;
    element.scrollIntoView({block: place.height > innerHeight ? 'start' : 'nearest', behavior: isCalm ? 'auto' : 'smooth'});
  };

  // What a button with `data-do` does in a part of the page.
  const onButtons = (part, actions) => part.addEventListener('click', event => {
    const button = event.target.closest('[data-do]');
    const action = button && actions[button.dataset.do];
    if (action) action(button);
  });

  // Where the page is, with a slash at its end: behind a proxy it may stand under any path.
  const home = `${(location.origin + location.pathname).replace(/\/$/, '')}/`;

  const isVisible = element => Boolean(element.offsetParent);

  return {limits, texts, fill, megabytes, say, escaped, reveal, onButtons, home, isVisible};
})();
