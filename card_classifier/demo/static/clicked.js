// For a part of the page with buttons: tells Python what the button that was clicked carries in its data attributes.
element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (button) trigger('select', {...button.dataset});
});
